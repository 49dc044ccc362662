"""The commands. An output of a run, or a run file, goes in with some options; messages, tables and an exit code come out.
Each verb is a file of its own with its options, and is loaded when it is asked for; `python -m jobs.<verb>` is the same as
`targetsmith <verb>`.

  cli         the command line: the names of the verbs
  app         what all verbs have in common: loading, errors as messages, exit codes
  pipes       standard output whose reader may go away
  plan        run file -> what a run will take and give, before it is begun
  score       run file -> finished shards and a summary
  show        one document for human eyes
  cat         the targets as JSON lines
  stats       an output in numbers
  diff        two outputs, or two products, position by position
  report      an output as one HTML file
  push        an output into a repository of the Hugging Face Hub
  verify      is the output whole, undamaged, and what the teacher says
  export      a product in the form of another program
  import      what another program stored, as an output
  vendor      the reader or the losses copied into a trainer
  demo        the embedded model and corpus (demo_assets/) through the real job

Packages: run (the work of `plan` and `score`), pool (its actors, Ray), look (the work of `show`, `cat`, `stats`, `diff`
and `verify`), page (that of `report`).
"""
