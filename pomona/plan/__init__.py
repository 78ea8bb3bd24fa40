"""Floor 7: how much. What a run costs on given chips, by arithmetic and by its compiled program."""
