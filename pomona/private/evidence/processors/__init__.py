"""Intel TDX and AMD SEV-SNP: what they sign, by which roots, and how Linux hands it out."""
