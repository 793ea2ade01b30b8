"""A model for EleutherAI's lm-evaluation-harness (the extra ``eval``).

``python -m llamagpu.evaluation`` is the harness's command line with the model ``llamagpu``:

    python -m llamagpu.evaluation --model llamagpu --model_args pretrained=DIR,dtype=float16 --tasks hellaswag

In Python, importing ``llamagpu.evaluation.harness`` registers it; ``HarnessModel`` also takes an open ``LLM``.
"""
