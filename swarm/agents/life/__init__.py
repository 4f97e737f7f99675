"""The life of an agent: who starts it, where it runs, how it is spoken with, and when it is started again."""
