package data

import (
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/volume"
)

// written is a database as a person writes it.
const written = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo}
spec:
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      containers:
      - name: mongo
        image: ferretdb:1.17
        env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        ports: [{containerPort: 27017}]
        resources: {limits: {memory: 1024Mi}}
        readinessProbe: {tcpSocket: {port: 27017}}
        volumeMounts: [{name: data, mountPath: /data, subPath: db}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`

// asTold is the same as a cluster tells it.
const asTold = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo, namespace: shop}
spec:
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo, sluice.dev/delivery: d1}}
    spec:
      containers:
      - name: mongo
        image: ferretdb:1.17
        imagePullPolicy: IfNotPresent
        env: [{name: POD_IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}]
        ports: [{containerPort: 27017, protocol: TCP}]
        resources: {limits: {memory: 1Gi}}
        readinessProbe: {tcpSocket: {port: 27017}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3}
        terminationMessagePath: /dev/termination-log
        terminationMessagePolicy: File
        volumeMounts: [{name: data, mountPath: /data, subPath: db}]
      dnsPolicy: ClusterFirst
      restartPolicy: Always
      schedulerName: default-scheduler
      securityContext: {}
      terminationGracePeriodSeconds: 30
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, volumeMode: Filesystem}
`

func workloadOf(t *testing.T, text string) workload {
	t.Helper()
	objects, err := manifest.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	w, err := readWorkload(objects[0])
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWhatAClusterFillsInIsNoChange(t *testing.T) {
	if !same(workloadOf(t, asTold), workloadOf(t, written)) {
		t.Error("a manifest and what a cluster makes of it are told apart")
	}
	for what, change := range map[string][2]string{
		"another image":           {"ferretdb:1.17", "ferretdb:1.24"},
		"another limit":           {"1024Mi", "2Gi"},
		"an argument more":        {"image: ferretdb:1.17", "image: ferretdb:1.17\n        args: [--verbose]"},
		"a mount less":            {"volumeMounts: [{name: data, mountPath: /data, subPath: db}]", "volumeMounts: []"},
		"another folder":          {"subPath: db", "subPath: db2"},
		"a probe less":            {"        readinessProbe: {tcpSocket: {port: 27017}}\n", ""},
		"an environment less":     {"        env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\n", ""},
		"an own grace of ending":  {"    spec:\n      containers:", "    spec:\n      terminationGracePeriodSeconds: 5\n      containers:"},
		"another number of pods":  {"replicas: 1", "replicas: 0"},
		"a container beside it":   {"  volumeClaimTemplates", "      - {name: exporter, image: x}\n  volumeClaimTemplates"},
		"a user that it runs as":  {"    spec:\n      containers:", "    spec:\n      securityContext: {runAsUser: 999}\n      containers:"},
		"a nodes' choice of ours": {"    spec:\n      containers:", "    spec:\n      nodeSelector: {disk: ssd}\n      containers:"},
	} {
		if !strings.Contains(written, change[0]) {
			t.Fatalf("%s: nothing is changed", what)
		}
		if same(workloadOf(t, asTold), workloadOf(t, strings.Replace(written, change[0], change[1], 1))) {
			t.Errorf("%s is no change", what)
		}
	}
}

func TestACopyIsAloneInItsNamespace(t *testing.T) {
	objects, err := manifest.Parse("live.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: mongo, annotations: {external-dns.alpha.kubernetes.io/hostname: mongo.example.org}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], externalIPs: [192.0.2.1], selector: {app: mongo, sluice.dev/open: "true"}, ports: [{port: 27017, nodePort: 30017}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, clusterIPs: [None], selector: {app: mongo}, ports: [{port: 27017}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: mongo}
spec:
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      serviceAccountName: mongo
      hostNetwork: true
      initContainers: [{name: fetch, image: f}, {name: chown, image: c}]
      containers:
      - {name: mongo, image: m, volumeMounts: [{name: data, mountPath: /data}]}
      - {name: shipper, image: s, volumeMounts: [{name: log, mountPath: /log}]}
      - {name: exporter, image: e}
      volumes:
      - {name: data, persistentVolumeClaim: {claimName: data}}
      - {name: log, hostPath: {path: /var/log}}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := asCopies(objects, []string{"exporter", "chown"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := manifest.Parse("live.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: mongo}
spec: {selector: {app: mongo}, ports: [{port: 27017}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, clusterIPs: [None], selector: {app: mongo}, ports: [{port: 27017}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: mongo}
spec:
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      automountServiceAccountToken: false
      initContainers: [{name: chown, image: c}]
      containers:
      - {name: mongo, image: m, volumeMounts: [{name: data, mountPath: /data}]}
      - {name: exporter, image: e}
      volumes:
      - {name: data, persistentVolumeClaim: {claimName: data}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(got[i].Object, want[i].Object) {
			t.Errorf("got  %v\nwant %v", got[i].Object, want[i].Object)
		}
	}
	if _, err := asCopies(objects, []string{"shipper"}); !fault.Is(err, fault.Denied) {
		t.Errorf("a folder of the node is shared with production: %v", err)
	}
}

func TestACopySharesNoVolume(t *testing.T) {
	for source, refused := range map[string]string{
		`persistentVolumeClaim: {claimName: data}`:                                   "",
		`configMap: {name: settings}`:                                                "",
		`secret: {secretName: tls}`:                                                  "",
		`emptyDir: {medium: Memory}`:                                                 "",
		`downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}`: "",
		`image: {reference: extensions}`:                                             "",
		`projected: {sources: [{configMap: {name: a}}, {secret: {name: b}}, {downwardAPI: {}}, {clusterTrustBundle: {path: ca}}]}`: "",
		`projected: {sources: [{secret: {name: b}}, {serviceAccountToken: {path: token}}]}`:                                        "serviceAccountToken",
		`projected: {sources: [{podCertificate: {keyType: RSA3072}}]}`:                                                             "podCertificate",
		`hostPath: {path: /var/log}`:               "hostPath",
		`nfs: {server: files, path: /}`:            "nfs",
		`cephfs: {monitors: [m]}`:                  "cephfs",
		`glusterfs: {endpoints: e, path: v}`:       "glusterfs",
		`iscsi: {targetPortal: p, iqn: q, lun: 0}`: "iscsi",
		`rbd: {monitors: [m], image: i}`:           "rbd",
		`fc: {wwids: [w]}`:                         "fc",
		`azureFile: {secretName: s, shareName: n}`: "azureFile",
		`azureDisk: {diskName: d, diskURI: u}`:     "azureDisk",
		`awsElasticBlockStore: {volumeID: v}`:      "awsElasticBlockStore",
		`flexVolume: {driver: d}`:                  "flexVolume",
		`csi: {driver: smb.csi.k8s.io}`:            "csi",
		`ephemeral: {volumeClaimTemplate: {}}`:     "ephemeral",
		`storageThatIsInventedLater: {}`:           "storageThatIsInventedLater",
	} {
		objects, err := manifest.Parse("live.yaml", []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: mongo}
spec:
  template:
    spec:
      containers:
      - {name: mongo, image: m, volumeMounts: [{name: extra, mountPath: /extra}]}
      - {name: shipper, image: s, volumeMounts: [{name: log, mountPath: /log}]}
      volumes:
      - {name: extra, `+source+`}
      - {name: log, nfs: {server: files, path: /}}
`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = asCopies(objects, nil)
		if refused == "" && err != nil {
			t.Errorf("%s: %v", source, err)
		}
		if refused != "" && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), refused+" (volume extra)")) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestVolumesArePreparedWhereTheyAreMounted(t *testing.T) {
	w := workloadOf(t, written)
	got := w.mounts([]volume.Source{{Claim: "data-mongo-0"}})
	if want := []platform.Mount{{Claim: "data-mongo-0", Path: "/data", SubPath: "db"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
