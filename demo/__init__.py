"""The embedded default: a generated world of fictional people and the two tiny models that learn it.

    build = demo.models.build_models()              # from the cache, or trained in a few minutes
    asked = demo.probes.probes(World.generate())    # what to ask them
    known = demo.replies.replies(build.model, asked)

Importing the package imports nothing.
"""
