"""What an application needs to ask the daemon; its one file is copied into the application."""
