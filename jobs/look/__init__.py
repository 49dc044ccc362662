"""Looking at an output. The output of a run goes in; tables, JSON lines or findings for people and programs come out. Nothing
is changed.

  options          the options that several commands share
  products         `--student` and `--view` -> product
  stored_document  one document of a product, found by name or number
  document_view    its tokens in visible characters, its top-k as arrays
  side_by_side     the table of `targetsmith show`
  scored_parts     what is scored of a document that is read in parts, and behind what
  widest           the tables of `targetsmith show --widest`: where a product is least certain
  json_lines       the lines of `targetsmith cat`
  figure_tables    the tables of `targetsmith stats`
  difference_tables  those of `targetsmith diff`
  verification     the report of `targetsmith verify`
"""
