"""The verbs: each file but the shared ones (events, progress, raypool, worker) is one command of `targetsmith`.

cli -> score -> raypool -> worker; show, cat and demo read what score wrote.
"""
