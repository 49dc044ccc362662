"""The main job. A run file goes in; the shards that were missing are scored by a pool of actors, and a summary comes out. Safe
to kill at any moment and to run again.

  job         run file -> plan -> pool -> manifest
  estimates   how large hidden states will be, told before the work begins
  budget      how many bad documents a run may have
  progress    a live line in a terminal, dated lines in a log
  summary     what came out, for a person
  trial       a few documents of a run, scored into a folder that is thrown away
  planning    what a run will take and give, before it is begun
  planning_text  the same for a person
"""
