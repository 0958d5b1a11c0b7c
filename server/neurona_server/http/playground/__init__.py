"""The playground: a page at the root of the HTTP transport where a person tries the models.

pages    the paths of the page and its files, and what it may know of the server
static/  the page: plain ES modules, which are sent as they are
"""
