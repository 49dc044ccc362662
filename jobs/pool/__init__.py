"""The actors of the main job. Units of documents go in; actors score and publish them, and events tell what became of each.
What kills its process is found and left out. Ray is imported in the files named ray_ alone.

  events        the values of the pool: what it asks of a worker, what it tells the main job
  schedule      who works on what: queue, deaths, copies for idle actors; no Ray, no clock
  unit_worker   what runs inside an actor: score a unit, publish it
  ray_steps     what every actor is at, asked now and then
  ray_metrics   what actors count, for Prometheus
  ray_ranks     actors that share one teacher: they live and die together
  ray_pool      actors of Ray: started, fed, waited for
  ray_cluster   Ray for the length of a command: a private one, or a cluster
"""
