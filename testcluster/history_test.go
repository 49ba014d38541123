package testcluster

import "testing"

func TestHistoryCheck(t *testing.T) {
	tests := []struct {
		name string
		fill func(h *History)
		ok   bool
	}{
		{"sequential", func(h *History) { h.Wrote(1, 1, 2); h.Read(1, 3, 4); h.Wrote(2, 5, 6); h.Read(2, 7, 8) }, true},
		{"stale read", func(h *History) { h.Wrote(1, 1, 2); h.Wrote(2, 3, 4); h.Read(1, 5, 6) }, false},
		{"concurrent writes, either order", func(h *History) { h.Wrote(1, 1, 4); h.Wrote(2, 2, 5); h.Read(1, 6, 7) }, true},
		{"concurrent writes, flapping", func(h *History) {
			h.Wrote(1, 1, 4)
			h.Wrote(2, 2, 5)
			h.Read(1, 6, 7)
			h.Read(2, 8, 9)
			h.Read(1, 10, 11)
		}, false},
		{"never written", func(h *History) { h.Read(9, 1, 2) }, false},
		{"read before the write", func(h *History) { h.Read(1, 1, 2); h.Wrote(1, 3, 4) }, false},
		{"unknown outcome, never seen", func(h *History) { h.Wrote(1, 1, 2); h.Wrote(2, 3, 0); h.Read(1, 9, 10) }, true},
		{"unknown outcome, seen late", func(h *History) { h.Wrote(1, 1, 2); h.Wrote(2, 3, 0); h.Read(1, 9, 10); h.Read(2, 11, 12) }, true},
		{"unknown outcome, seen then gone", func(h *History) { h.Wrote(1, 1, 2); h.Wrote(2, 3, 0); h.Read(2, 9, 10); h.Read(1, 11, 12) }, false},
		{"zero at first", func(h *History) { h.Read(0, 1, 2); h.Wrote(1, 3, 4) }, true},
		{"zero while being written", func(h *History) { h.Wrote(1, 1, 9); h.Read(0, 2, 3) }, true},
		{"lost write", func(h *History) { h.Wrote(1, 1, 2); h.Read(0, 3, 4) }, false},
		{"zeroed", func(h *History) { h.Wrote(1, 1, 2); h.Zeroed(3, 4); h.Read(0, 5, 6) }, true},
		{"read of what was removed", func(h *History) { h.Wrote(1, 1, 2); h.Zeroed(3, 4); h.Read(1, 5, 6) }, false},
		{"read while it is removed", func(h *History) { h.Wrote(1, 1, 2); h.Zeroed(3, 6); h.Read(1, 4, 5) }, true},
		{"removed while it is written", func(h *History) { h.Wrote(1, 1, 4); h.Zeroed(2, 3); h.Read(1, 5, 6) }, true},
		{"zero between two reads of one value", func(h *History) { h.Wrote(1, 1, 2); h.Zeroed(1, 0); h.Read(1, 3, 4); h.Read(0, 5, 6); h.Read(1, 7, 8) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var h History
			tt.fill(&h)
			if err := h.Check(); (err == nil) != tt.ok {
				t.Errorf("Check() = %v, want ok %v", err, tt.ok)
			}
		})
	}
}
