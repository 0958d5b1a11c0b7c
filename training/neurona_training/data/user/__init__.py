"""A user's own files as a data set.

spec        which file, and what its user says about it
load        reads any of the kinds below
table       CSV files: columns by name
rows        a CSV file, one column predicted from the others
parts       which rows are for training, validation and the test
encoding    columns with missing values, dates and text as numbers
rounding    numbers that float32 does not tell apart
categories  columns of text as numbers
times       rows of a series in the order of time
series      a CSV file, a column whose rows follow each other in time
arrays      an .npz file of sequences, images or rows
chosen_parts  files and arrays that their user has divided
class_folders  a folder of files for each class, also below train, val and test
images      images in such folders
sounds      recordings in such folders
large_arrays  arrays that may be larger than memory
"""
