package postgres

import "testing"

// TestRedirect keeps everything of a conninfo but where it leads.
func TestRedirect(t *testing.T) {
	for in, want := range map[string]string{
		`user=repl host=pg-0.pg port=5432`: `user='repl' port='5432' host='pg-1.pg' application_name='pg-2'`,
		`host = 'pg-0.pg'  password = 'it\'s a \\ secret' application_name=pg-1 sslmode=prefer`: `password='it\'s a \\ secret' sslmode='prefer' host='pg-1.pg' application_name='pg-2'`,
		`hostaddr=10.0.0.1 user=a\ b passfile=`:                                                 `user='a b' passfile='' host='pg-1.pg' application_name='pg-2'`,
		`postgres://repl:x%27@pg-0.pg:5433/?sslmode=disable`:                                    `postgres://repl:x%27@pg-1.pg:5433/?application_name=pg-2&sslmode=disable`,
		`postgresql://repl@pg-0.pg/postgres?application_name=walreceiver`:                       `postgresql://repl@pg-1.pg/postgres?application_name=pg-2`,
	} {
		got, err := redirect(in, "pg-1.pg", "pg-2")
		if err != nil || got != want {
			t.Errorf("%s\n got %s, %v\nwant %s", in, got, err, want)
		}
	}
	for _, in := range []string{`host`, `host='pg-0`, `=x`, `a b=c`, `postgres://a,b/`, `port=1,2 host=a,b`, "postgres://%zz"} {
		if got, err := redirect(in, "pg-1.pg", "pg-2"); err == nil {
			t.Errorf("%s became %s", in, got)
		}
	}
}
