"""Statistics of the images of a data set and of their patches, and the settings of a model that follow from them.

Imports training/ and what that imports; never the packages of a task.
"""
