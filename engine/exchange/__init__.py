"""An output written in the form that another program trains from, and what another program stored read as an output.

    output ─ outgoing ─▶ readings ─ axolotl | distillkit | megatron | trl ─▶ files of that program, in a new folder
    files of that program ─▶ readings ─ incoming ─▶ an output of regime `imported`, which certifies nothing

What each form keeps and loses is said in its file, printed by the command and written beside the files (docs/exchange.md).

  reading           one sequence of tokens as a model reads it, with the distribution of each: what is exchanged
  outgoing          an output's product -> readings, a file after the other
  destination       a new folder that appears whole or not at all
  parquet_files     folders of Parquet files: written from readings, read by records
  source            what another program stored, as records that can be read from any place on
  axolotl           Axolotl's columns for distillation
  distillkit        DistillKit's compressed Parquet
  distillkit_codec  its log-probabilities and ids as bytes
  megatron          Megatron-LM's tar files of log-probabilities
  trl               the names of TRL's server distillation, as a dataset
  formats           the forms by name
  incoming          a source -> an output: plan, units, quarantine, manifest
  documents         readings of a record -> a row of an output, or why there can be none
"""
