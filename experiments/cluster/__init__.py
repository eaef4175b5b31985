"""Runs over a Ray cluster: one worker a core or a GPU of all its machines.

Nothing else in the project imports Ray, and here it is imported when a cluster is asked for.
"""
