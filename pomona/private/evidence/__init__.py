"""What hardware says of a machine, read and judged offline: a TPM, and processors that encrypt their memory."""
