"""What is true on disk and in the run file: values only, no torch, no Ray; imports nothing else of the project.

errors           every error a person can meet, as one tree with exit codes
settings         the tables of the run file, each key with its meaning and whether it changes results
runfile          run.toml -> RunConfig
runfile_errors   what was found, what was wanted, what to do, for every wrong key
target           the columns of a shard, types and units
manifest         plan, seal, manifest; the fixed words of the quarantine
"""
