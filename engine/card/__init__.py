"""An output described and published. A finished run and its run file go in; a dataset card for people, Croissant metadata for
catalogues, and a repository of the Hugging Face Hub come out. No torch, no Ray.

  describe   what a run publishes before its manifest: README.md and croissant.json
  readme     the dataset card
  inputs     teacher, tokenizers and corpus by name, revision and hash; the run file without secrets
  headline   the figures that the card shows
  limits     what the run is not
  loading    how a product is loaded, in five lines each
  markdown   texts of others inside Markdown
  croissant  the files and columns as JSON-LD
  hub        a repository of the Hub: its address, what it holds, whose run that is
  publish    a finished output into a repository, again and again until all of it is there
"""
