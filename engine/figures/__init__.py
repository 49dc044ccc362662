"""An output in numbers. What is published of a run goes in, finished or not; figures come out that stats and report show, and the
differences of two outputs. Nothing is changed. Of a large output some units are read, by a seed, and the figures say so.

  models       the figures as values
  sample       which units are read
  rows         a row group as arrays, and what its positions cost
  spreads      values -> mean, quantiles, histogram
  texts        text around a position
  costs        what a text costs by each product
  product      one product -> its figures
  collect      an output -> its figures
  differences  two products of the same documents, position by position
  compare      two outputs -> how far they are from each other
"""

from engine.figures.collect import collect
from engine.figures.models import Figures
from engine.figures.sample import open_published

__all__ = ["Figures", "collect", "open_published"]
