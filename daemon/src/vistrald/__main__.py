from vistrald.cli import main

main()
