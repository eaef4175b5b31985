"""Coming from elsewhere: other libraries' names and files, read as ours."""
