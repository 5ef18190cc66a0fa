"""Folders of files as components: Odoo's filestore (``odoo-filestore``) and any other folder (``directory``).

``names`` knows what a document is called, ``walk`` lists a live folder, ``capture`` takes it into a snapshot with what
was damaged in production already (``record``), ``placing`` brings documents back that a recovered database refers to.
"""
