package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/tsdb"
)

// api answers the two routes that clients of Prometheus's HTTP API need for queries.
type api struct {
	engine *promql.Engine
	db     *tsdb.DB
}

func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/query", a.query)
	mux.HandleFunc("/api/v1/query_range", a.queryRange)
	mux.HandleFunc("/-/ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	return mux
}

func (a *api) query(w http.ResponseWriter, r *http.Request) {
	at, err := instant(r.FormValue("time"), time.Now())
	if err != nil {
		refuse(w, err)
		return
	}
	q, err := a.engine.NewInstantQuery(r.Context(), a.db, nil, r.FormValue("query"), at)
	if err != nil {
		refuse(w, err)
		return
	}
	defer q.Close()
	answer(w, r.Context(), q)
}

func (a *api) queryRange(w http.ResponseWriter, r *http.Request) {
	start, err := instant(r.FormValue("start"), time.Time{})
	if err != nil {
		refuse(w, err)
		return
	}
	end, err := instant(r.FormValue("end"), time.Time{})
	if err != nil {
		refuse(w, err)
		return
	}
	step, err := strconv.ParseFloat(r.FormValue("step"), 64)
	if err != nil || step <= 0 {
		refuse(w, fmt.Errorf("step %q is not a number of seconds", r.FormValue("step")))
		return
	}
	q, err := a.engine.NewRangeQuery(r.Context(), a.db, nil, r.FormValue("query"), start, end, time.Duration(step*float64(time.Second)))
	if err != nil {
		refuse(w, err)
		return
	}
	defer q.Close()
	answer(w, r.Context(), q)
}

func instant(s string, otherwise time.Time) (time.Time, error) {
	if s == "" && !otherwise.IsZero() {
		return otherwise, nil
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		sec, frac := math.Modf(f)
		return time.Unix(int64(sec), int64(frac*1e9)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, fmt.Errorf("%q is no instant", s)
	}
	return t, nil
}

// answer runs the query. The parser's types write themselves as the API wants them.
func answer(w http.ResponseWriter, ctx context.Context, q promql.Query) {
	res := q.Exec(ctx)
	if res.Err != nil {
		refuse(w, res.Err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": res.Value.Type(), "result": encode(res)}})
}

func encode(res *promql.Result) any {
	switch v := res.Value.(type) {
	case promql.Vector:
		out := []any{}
		for _, s := range v {
			out = append(out, map[string]any{"metric": s.Metric.Map(), "value": point(s.T, s.F)})
		}
		return out
	case promql.Matrix:
		out := []any{}
		for _, s := range v {
			values := []any{}
			for _, p := range s.Floats {
				values = append(values, point(p.T, p.F))
			}
			out = append(out, map[string]any{"metric": s.Metric.Map(), "values": values})
		}
		return out
	case promql.Scalar:
		return point(v.T, v.V)
	case promql.String:
		return []any{float64(v.T) / 1000, v.V}
	}
	return nil
}

func point(ms int64, v float64) []any {
	return []any{float64(ms) / 1000, strconv.FormatFloat(v, 'f', -1, 64)}
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": "error", "errorType": "bad_data", "error": err.Error()})
}
