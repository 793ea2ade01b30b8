"""An HTTP server with OpenAI's endpoints over the models of this machine.

``models`` is the one door to the engine; everything else knows requests and JSON. It needs the extra ``serve``.
"""
