"""The Gradio demo, on this machine or as a Space.

Imports conversion/, data/, hub/, training/ and model/.
"""
