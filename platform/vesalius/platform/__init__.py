"""The ground floor: contracts, store, training, scoring, evaluation, tracking, registry.

It knows no method, no data set and no study; they are handed to it.
"""
