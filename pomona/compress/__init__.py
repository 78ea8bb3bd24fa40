"""A dense model made smaller: stages that read one run folder and write another."""
