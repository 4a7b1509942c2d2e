"""Starting fast: heavy modules imported late and without their unused parts."""
