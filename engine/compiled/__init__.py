"""One (teacher tokenizer, student tokenizer) pair compiled to arrays: what each teacher token does at a student's boundary."""
