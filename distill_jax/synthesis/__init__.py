"""Queries made from documents: cropped, generated, filtered, split.

made = crop.crop(collection, per_doc=1)                       # or generate.*
made, funnel = filter.Funnel.of(made).round_trip(run).result()
made.write("queries", collection)                             # a BEIR folder
"""
