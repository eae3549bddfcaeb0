class Tutorials {}
