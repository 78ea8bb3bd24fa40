"""What a node proves about itself: TPM, TDX and SEV-SNP evidence, a bundle of it, and the policy that judges it."""
