"""What is true in the run file and on disk: the settings of a run, the columns of a shard, the JSON beside the shards, and every
error that a person can meet. Values only: no torch, no Ray, nothing else of the project. The package imports none of its files
by itself, so that `targetsmith --help` needs two of them and no more.

  errors            every error that a person can meet, as one tree with exit codes
  redact            secrets out of texts, before they are written or shown
  address           a path or the URL of a store: which ones outputs and corpus files may have
  counts            how many of something, for a person
  products          the names of products, and the id that ends a text in the byte product
  runfile_errors    what was found, what was wanted, what to do, for every wrong key of a run file
  settings          the tables of the run file, each key with its meaning and whether it changes results
  corpus_faults     which keys of [corpus], and which [[corpus]] tables, do not go together
  settings_corpus   the table [corpus]: which documents a run has, and how they are taken from records
  settings_targets  the table [targets]: what is stored, and how far the teacher is asked for it
  settings_card     the table [card]: what the dataset card says that no file of the run can tell
  runfile           run.toml -> RunConfig
  target            the columns of a shard, types and units
  plan_inputs       what a plan says about its inputs: corpus files, retried documents
  differences       what differs between two plans, in lines for a person
  reasons           the fixed words of the quarantine, what each means, and what to do
  manifest          plan, seal and manifest
"""
