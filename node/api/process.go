package api

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// FindProcess names a running process.
func FindProcess(pid int) (Process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("find process %d: %w", pid, err)
	}
	// The second field, the command, is in parentheses and may hold any byte.
	after := string(b[strings.LastIndexByte(string(b), ')')+1:])
	fields := strings.Fields(after)
	const startTime = 22 - 3 // fields are numbered from 1, and two are cut off
	if len(fields) <= startTime {
		return Process{}, fmt.Errorf("find process %d: /proc/%d/stat has too few fields", pid, pid)
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("find process %d: start time: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive tells whether the process still runs; a zombie does not.
func (p Process) Alive() bool {
	now, err := FindProcess(p.PID)
	if err != nil || now != p {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	return !strings.HasPrefix(after, "Z")
}
