"""The web pages: server-rendered, a module per noun, each handler named by its method (`show_GET`, `new_POST`)."""
