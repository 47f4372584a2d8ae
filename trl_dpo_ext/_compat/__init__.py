"""The private names of TRL, transformers, PEFT, accelerate, torch and bitsandbytes: one file for each library."""
