"""The commands and what runs them: parse, call the engine, print, exit code.

  cli       the command line: one command per verb; every error meant for people becomes a message and an exit code
  score     run file -> plan -> pool -> manifest -> summary
  raypool   the only file that knows Ray: actors, queue, deaths
  events    the values of the pool: tasks, calls, what it reports
  worker    what runs inside an actor: score a unit, publish it
  progress  a live line in a terminal, dated lines in a log
  show      one document for human eyes
  cat       the targets as JSON lines
  demo      the embedded model and corpus (demo_assets/) through the real job

Ray is imported in raypool alone.
"""
