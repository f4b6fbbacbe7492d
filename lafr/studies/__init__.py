"""Studies: many short trainings that answer a question, planned, queued, recorded and put into words.

`plan` cuts a run into steps that runs may share, `queue` works through them within a budget, `record` keeps what was
measured, `intervals` and `costs` compare, `findings` says it in words, `charts` and `latents` draw it.
"""
