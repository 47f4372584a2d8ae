"""Private and fragile names of TRL, transformers, PEFT, torch, bitsandbytes and vLLM, one file per library."""
