"""A model behind HTTP: volumes in, maps and scores out, on Ray Serve.

Two deployments. The *ingress* takes requests in: it checks them, writes uploads to a folder of its own, brings them
through the model's recipe (the code of ``vesalius score``) and answers. The *scorer* holds the model, on the GPU where
there is one, where it scores what has come together in the meantime in one call. When the alias moves, the ingress has
the scorers load the new version beside the old one and then switches: what is under way ends on the version it began
with.

What comes from outside is checked before anything large is held: see :mod:`vesalius.infra.serving.uploads` and
:mod:`vesalius.infra.serving.archives`.
"""
