"""Parts that model families are made of. A part is data: its sizes, the rows it adds to the table of parameters, and
``graph``, the "module:name" that builds it. builder/models loads that by name: nothing here loads TVM, and a library's
code is the parts that its family names. ``operations`` gives all such names of a part."""
