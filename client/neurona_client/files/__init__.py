"""What a file contains: the readers that training, the server and the client share.

A model answers rightly only if a file becomes the same numbers when it is predicted as when it
was trained on. So each kind of file has one reader, and all sides call it.

errors        a file whose content is not what its kind expects
images        pictures as grey levels or colours
image_inputs  pictures as rows of a model's input
audio         recordings as samples from -1 to 1
arrays        numpy's arrays, and sequences of different lengths
tables        CSV and its relatives: columns by name
numbers       numbers as tables have them: decimal commas, thousands, per cent
dates         dates as tables have them: ISO 8601, 31.12.2024, 12/31/2024, 31 Dec 2024
texts         text in UTF-8, or whatever its byte order mark says; Windows-1252

The readers import nothing else of the client: training and the server can use
them without a connection.
"""
