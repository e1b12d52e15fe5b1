"""Context-free grammars in Lark's notation."""
