"""Private and fragile names of TRL, transformers, PEFT, accelerate, torch and others, one file per library."""
