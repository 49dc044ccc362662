"""The page of `targetsmith report`: figures and some documents go in, one HTML file comes out that needs no network. Texts of
documents are hostile: they go in as JSON, and reach the page as text nodes only.

  charts     the figures as Vega-Lite specifications
  documents  which documents are shown, and their tokens as JSON
  html       all of it in one file, with the rule that nothing else may run or be loaded
  write      an output -> its page on the disk

assets/: the page's frame, its style and its two scripts.
"""
