"""Synthetic queries from documents: cropped, generated, filtered, split.

made = crop.crop(collection)              # or t5.generate, llm.generate
funnel = filter.Funnel(made).without_duplicates().round_trip(run)
print(funnel.table())
funnel.made.write("queries", collection)  # a folder that beir:queries loads
"""
