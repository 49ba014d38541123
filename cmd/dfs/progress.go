package main

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress is the bar of a copy. A nil progress shows nothing: that is what a copy has whose standard error is not a
// terminal. Safe for concurrent use.
type progress struct {
	bars  *mpb.Progress
	bar   *mpb.Bar
	total atomic.Int64
	files atomic.Int64
}

// startProgress shows a bar on a terminal; messages of sh appear above it until stop.
func (sh *shell) startProgress() (p *progress, stop func()) {
	if !sh.env.terminal {
		return nil, func() {}
	}
	p = &progress{bars: mpb.New(mpb.WithOutput(sh.env.err), mpb.WithWidth(80))}
	p.bar = p.bars.AddBar(0,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(
			decor.Any(func(decor.Statistics) string { return fmt.Sprintf("%s %d files ", sh.as, p.files.Load()) }),
			decor.CountersKibiByte("% .1f / % .1f"),
		),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f "), decor.AverageETA(decor.ET_STYLE_GO)),
	)
	sh.setTalk(p.bars)
	return p, func() {
		p.bar.SetTotal(-1, true)
		p.bars.Wait()
		sh.setTalk(sh.env.err)
	}
}

// setTalk redirects messages.
func (sh *shell) setTalk(w io.Writer) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.talk = w
}

// expect adds bytes that will be copied.
func (p *progress) expect(n int64) {
	if p != nil {
		p.bar.SetTotal(p.total.Add(n), false)
	}
}

// moved counts bytes that were copied.
func (p *progress) moved(n int) {
	if p != nil {
		p.bar.IncrBy(n)
	}
}

// finished counts a file.
func (p *progress) finished() {
	if p != nil {
		p.files.Add(1)
	}
}

// progressWriter counts what passes.
type progressWriter struct {
	w io.Writer
	p *progress
}

func (w progressWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.p.moved(n)
	return n, err
}
