package dfs

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestCRCKnownAnswer(t *testing.T) {
	// RFC 3720 appendix B.4 and the usual check value.
	if got := CRC([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("CRC(123456789) = %08x", got)
	}
	if got := CRC(make([]byte, 32)); got != 0x8a9136aa {
		t.Errorf("CRC of 32 zeros = %08x", got)
	}
}

func TestCombineCRC(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < 500; i++ {
		a, b := randomBytes(rng, rng.IntN(300)), randomBytes(rng, rng.IntN(9000))
		if got, want := CombineCRC(CRC(a), CRC(b), int64(len(b))), CRC(append(slices.Clone(a), b...)); got != want {
			t.Fatalf("CombineCRC of %d and %d bytes = %08x, want %08x", len(a), len(b), got, want)
		}
	}
	if got := CombineCRC(7, 0, 0); got != 7 {
		t.Errorf("empty second part changed the checksum to %d", got)
	}
}

func TestZeroCRC(t *testing.T) {
	for _, n := range []int64{0, 1, 511, BlockSize - 1, BlockSize, BlockSize + 1, 3*BlockSize + 17, MiB, MiB + 5} {
		if got, want := ZeroCRC(n), CRC(make([]byte, n)); got != want {
			t.Errorf("ZeroCRC(%d) = %08x, want %08x", n, got, want)
		}
	}
}

func TestBlockCRCs(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := 0; i < 300; i++ {
		off, data := rng.Int64N(3*BlockSize), randomBytes(rng, rng.IntN(4*BlockSize))
		got := BlockCRCs(off, data)
		if len(got) != BlockPieces(off, int64(len(data))) {
			t.Fatalf("off %d len %d: %d pieces, want %d", off, len(data), len(got), BlockPieces(off, int64(len(data))))
		}
		var whole uint32
		pos := off
		for _, crc := range got {
			n := min(BlockSize-pos%BlockSize, off+int64(len(data))-pos)
			if want := CRC(data[pos-off : pos-off+n]); crc != want {
				t.Fatalf("off %d len %d: piece at %d is %08x, want %08x", off, len(data), pos, crc, want)
			}
			whole = CombineCRC(whole, crc, n)
			pos += n
		}
		if whole != CRC(data) {
			t.Fatalf("pieces of off %d len %d do not combine to the whole", off, len(data))
		}
		var cut [][]byte
		for rest := data; len(rest) > 0; {
			n := 1 + rng.IntN(len(rest))
			cut, rest = append(cut, rest[:n]), rest[n:]
		}
		if v := BlockCRCsV(off, cut); !slices.Equal(v, got) {
			t.Fatalf("BlockCRCsV(%d, %d buffers) differs from BlockCRCs", off, len(cut))
		}
	}
}

func BenchmarkBlockCRCs1MiB(b *testing.B) {
	data := randomBytes(rand.New(rand.NewPCG(5, 6)), MiB)
	b.SetBytes(MiB)
	b.ReportAllocs()
	for b.Loop() {
		BlockCRCs(0, data)
	}
}
