package chunkio

// Streams returns how many streams are open.
func Streams(x *IO) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.streams)
}
