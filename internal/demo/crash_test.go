package demo_test

const crashEnv = "SLUICE_DEMO_CRASH"

func crashingServer(args []string) int { return 1 }
