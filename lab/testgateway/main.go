// Command testgateway shares requests out by the HTTPRoutes of a namespace that name its gateway, as far as tests need: rules by
// path, and Services of the namespace by their weights. It tells a route in its status what it makes of it, once it serves by that.
// No Gateway has to exist; the name is enough.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	v1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	routeinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"

	"github.com/sluice-cd/sluice/lab/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testgateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("use: testgateway LISTEN NAMESPACE GATEWAY, the name by which routes of the namespace name it")
	}
	listen, namespace, name := args[0], args[1], args[2]
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	routeClient, err := versioned.NewForConfig(config)
	if err != nil {
		return err
	}
	services := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace)).Core().V1().Services()
	routes := routeinformers.NewSharedInformerFactoryWithOptions(routeClient, 0, routeinformers.WithNamespace(namespace)).Gateway().V1().HTTPRoutes()
	g := &gateway{
		namespace: namespace, name: name, routes: routes.Lister(), services: services.Lister(), changed: make(chan struct{}, 1),
		tell: func(ctx context.Context, route *v1.HTTPRoute) error {
			_, err := routeClient.GatewayV1().HTTPRoutes(namespace).UpdateStatus(ctx, route, metav1.UpdateOptions{})
			return err
		},
		// A connection for each request, as those that are kept would go on to pods that a Service no longer leads to.
		transport: &http.Transport{DisableKeepAlives: true},
	}
	for _, i := range []cache.SharedIndexInformer{services.Informer(), routes.Informer()} {
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { g.change() }, UpdateFunc: func(any, any) { g.change() }, DeleteFunc: func(any) { g.change() }})
		if err != nil {
			return err
		}
		go i.RunWithContext(ctx)
	}
	if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced, routes.Informer().HasSynced) {
		return errors.New("ended before routes and Services could be read")
	}
	// It listens before it tells a route that it serves.
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	go g.follow(ctx)
	return serve.On(ctx, l, g)
}
