"""The commands and what runs them: parse, call the engine, print, exit code.

  cli       the command line: one command per verb; every error meant for people becomes a message and an exit code
  score     run file -> plan -> pool -> manifest -> summary
  rayconnect  Ray for the length of a command
  raypool   actors of Ray: started, fed, waited for
  schedule  who works on what: queue, deaths, copies; no Ray, no clock
  events    the values of the pool: what it asks of a worker, what it reports
  worker    what runs inside an actor: score a unit, publish it
  progress  a live line in a terminal, dated lines in a log
  show      one document for human eyes
  cat       the targets as JSON lines
  demo      the embedded model and corpus (demo_assets/) through the real job

Ray is imported in rayconnect and raypool alone.
"""
